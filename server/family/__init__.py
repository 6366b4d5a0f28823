"""The process family as its supervisor sees it: sockets and folders, children, their restarts and their end."""
