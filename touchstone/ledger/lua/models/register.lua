-- tenant, id, digest, manifest as JSON or '', digest and bytes of its blob or '', probe as JSON, bytes of its file, the job
-- that tried it and its claim, or '' twice. Makes this version the current one, unless it is known: then nothing changes, and
-- the known manifest and its blob are returned. False where the claim does not hold any more, or the job was canceled.
local tenant, id, digest, manifest, manifest_blob, probe, size, job, claim = unpack(ARGV)
local key = version_key(tenant, id, digest)
if redis.call('EXISTS', key) == 1 then return redis.call('HMGET', key, 'card', 'card_blob') end
if job ~= '' and not (holds_claim(job, claim) and get(job, 'cancel')[1] == '0') then return false end

local at = now()
redis.call('HSET', key, 'card', manifest, 'card_blob', manifest_blob, 'examined', probe, 'at', at)
hold_value(tenant, manifest_blob)
add_holder(tenant, digest, size)
local versions = versions_of(tenant, id)
table.insert(versions, 1, {digest = digest, at = at})
redis.call('HSET', registry_key(tenant), id, cjson.encode(versions))
return {manifest, manifest_blob}
