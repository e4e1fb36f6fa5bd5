"""What people and CI systems read: wire structs as lines of text, JUnit XML, GitHub annotations, and plots."""
