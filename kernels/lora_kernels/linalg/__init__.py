"""Dense linear algebra on factors: singular values, norms and distances of products that are never formed."""
