"""What runs, as it is: the service on one screen, its journals as one stream, the way of its traffic."""
