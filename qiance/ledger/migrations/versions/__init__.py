"""One module per revision, oldest first; never edited once released."""
