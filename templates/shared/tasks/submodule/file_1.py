# No @mn.function() here: an ordinary module that main.py imports.
def square(i):
    return i * i
