"""What the page tells of single images: which classes were taken for which, and the pictures."""
