"""What confines a job: control groups, bubblewrap, and finding out what this host offers.

Everything here but `detect` is used by the keeper too, so it imports the standard library only.
"""
