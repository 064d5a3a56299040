"""Models: what is known of them without loading them, and how they are loaded."""
