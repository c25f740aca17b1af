"""What can be read from a representation: phones, words, speakers and languages."""
