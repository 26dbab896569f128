"""From a failure to the known fault that explains it. See README.md here."""
