"""Parts of the copy benchmark."""
