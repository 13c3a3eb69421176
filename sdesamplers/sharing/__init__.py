"""Files of this library on the Hugging Face Hub, whatever their kind.

push.py           `push_to_hub`: finds out what a file or folder is, checks it, and uploads it with a card
registry_card.py  the card of a registry file
"""
