"""What representations encode: phones, words, speakers and languages."""
