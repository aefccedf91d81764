"""Records of users' files: pictures and what is asked about them, whatever layout they come in.

`files` and `hub` say where rows come from, `formats` what a row means, `pictures` how an image is
named in it, `reading` joins the three and counts what cannot be used, `drawing` picks a few of many
by seed. Nothing here knows what the records are for.
"""
