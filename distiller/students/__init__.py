"""The students: narrow shapes, gates, the resulting size, and the exact removal of closed units."""
