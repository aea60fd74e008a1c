"""What a node does for the archive: offloads the logs that it orders, and reads for everybody."""
