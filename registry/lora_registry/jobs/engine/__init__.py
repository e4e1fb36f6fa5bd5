"""The job engine behind its port, independent of the kinds of work. Nothing else imports dbos."""
