"""Small files on the Hugging Face Hub: recipes, registry files, solver tables, comparisons. Data only; nothing is run.

address.py   `hf://owner/name@revision/path`
errors.py    the errors of huggingface_hub, each as one line
download.py  files and patterns of files, at a revision or at the newest
upload.py    several files in one commit
cards.py     README.md files that describe what was uploaded, and are recognised if nobody has changed them
"""
