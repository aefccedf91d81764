"""Records of users' files: images and their questions, in any layout.

`sources` and `hub` give rows, `formats` interprets a row, `pictures` resolves its image names,
`reading` joins the three and counts unusable rows, `drawing` samples records by seed. Nothing here
depends on the use of the records.
"""
