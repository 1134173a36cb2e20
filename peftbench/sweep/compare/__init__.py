"""Methods compared on pictures of one's own, in as much time as is given."""
