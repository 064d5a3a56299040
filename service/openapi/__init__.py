"""What the OpenAPI document has besides the signatures of the routes."""
