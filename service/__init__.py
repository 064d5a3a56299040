"""The HTTP shell: thin, and never imports torch."""
