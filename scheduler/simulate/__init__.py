"""What the scheduler would do with a load: its real rules in virtual time, beside FIFO and EASY backfill."""
