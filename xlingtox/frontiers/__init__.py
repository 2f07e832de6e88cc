"""Compare methods where they cost the same fluency."""
