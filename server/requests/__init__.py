"""Requests on their way through the front end: sequences in flight, and the link to the engines that run them."""
