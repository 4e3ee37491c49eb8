"""Evidence sheets: which checkpoint and strength is best, why, how sure that is, and whether it copies."""
