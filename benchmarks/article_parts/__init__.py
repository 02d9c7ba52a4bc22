"""Parts of the article study."""
