"""Jobs under way: in processes of this machine or on a cluster."""
