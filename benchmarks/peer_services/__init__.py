"""Services of others, or as others write them, which ours is measured beside."""
