-- the settings of a database that answers the queries of people: it sees only what is there already, and can be set no further
SET allow_community_extensions = false;
SET allow_extension_repositories = 'forbidden';
SET allow_persistent_secrets = false;
SET autoinstall_known_extensions = false;
SET autoload_known_extensions = false;
-- The order of rows without ORDER BY is that of the table.
SET preserve_insertion_order = true;
SET python_enable_replacements = false;
SET enable_external_access = false;
SET lock_configuration = true;
