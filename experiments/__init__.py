"""Every table and figure of the paper as a command: see README.md here."""
