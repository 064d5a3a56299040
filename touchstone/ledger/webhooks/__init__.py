"""Webhooks: endpoints, their deliveries, signatures."""
