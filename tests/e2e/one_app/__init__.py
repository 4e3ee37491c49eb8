"""What a person does with one running app, in a browser and over its API."""
