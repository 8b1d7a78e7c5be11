"""Files and folders: read without surprises, written whole or not at all, quoted in one line."""
