"""A release as a folder that is a package index, and the places it is sent to."""
