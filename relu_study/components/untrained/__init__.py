"""Statistics of networks that are drawn and never trained."""
