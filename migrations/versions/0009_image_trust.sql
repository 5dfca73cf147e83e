-- What a tenant's images must be: `policy` null is the fabric's own; `keys` are public ones, {name, pem} each;
-- `repositories` are places that images come from, none for any; `credentials` maps registries to names of credentials,
-- which lie on nodes and API servers, never here.
CREATE TABLE image_trust (
    tenant_id uuid NOT NULL CONSTRAINT pk_image_trust PRIMARY KEY CONSTRAINT fk_image_trust_tenant REFERENCES tenant (id),
    policy text CONSTRAINT ck_image_trust_policy CHECK (policy IN ('off', 'digest', 'signed')),
    keys jsonb NOT NULL DEFAULT '[]',
    repositories text[] NOT NULL DEFAULT '{}',
    credentials jsonb NOT NULL DEFAULT '{}'
);
