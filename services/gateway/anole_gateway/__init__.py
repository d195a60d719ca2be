"""The REST API: validates, tokenizes, submits, streams answers back."""
