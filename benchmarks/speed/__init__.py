"""Speed, memory and counts, each measured beside what it is compared with."""
