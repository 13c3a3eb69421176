"""New plugins: `sdesamplers new-plugin NAME` writes a package that passes its own tests.

naming.py     the names of a plugin's distribution, module and items
packages.py   the files of a package, from the templates
templates/    one file for each file of the package, for `string.Template`
"""
