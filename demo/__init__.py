"""The bundled model: seeded scenes, its questions, how it is trained and how it is measured."""
