"""A name that a folder may have, with every character that another program's file or a URL gives a meaning to."""

ODD = "ö %41 %(x)s 'q\" \\ $HOME ${X} #?&; a::b [x] {y} ~"
