"""What every contract's live streams and log readers share: a spoke adds its own rendering."""
