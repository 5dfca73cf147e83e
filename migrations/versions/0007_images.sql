-- What the name of a container job's image stood for when the attempt ran it: the registry's digest, a sha256
ALTER TABLE attempt ADD COLUMN image_digest text;
