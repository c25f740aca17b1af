"""What the student is: narrow shapes, gates, the size they lead to, and the exact removal of closed units."""
