"""What should happen next: beat tasks that recover and tidy, and a ticker that needs neither beat nor broker."""
