"""What our tests stand on, shipped so that others can test with it: disks that fail, and what every disk must do."""
