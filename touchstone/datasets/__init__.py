"""Labelled images as people have them: files in folders or zips, and labels that are met with classes."""
