-- tenant, id, digest or '' for all versions. Deletes a model, unless a job that has not ended names it.
local tenant, id, digest = unpack(ARGV)
local kept, gone = {}, {}
for _, version in ipairs(versions_of(tenant, id)) do
  local list = (digest == '' or version.digest == digest) and gone or kept
  list[#list + 1] = version
end
if #gone == 0 then return {'unknown'} end

for _, status in ipairs({'running', 'queued'}) do
  for _, job in ipairs(redis.call('ZRANGE', 'ts:tenant:' .. tenant .. ':status:' .. status, 0, -1)) do
    if redis.call('ZSCORE', 'ts:model:' .. id, job) then
      local submission = cjson.decode(get(job, 'submission')[1])
      if digest == '' or submission.model.digest == digest then return {status, job} end
    end
  end
end

for _, version in ipairs(gone) do
  local key = version_key(tenant, id, version.digest)
  release_value(tenant, redis.call('HGET', key, 'card_blob'))
  redis.call('DEL', key)
  remove_holder(tenant, version.digest)
  if redis.call('HEXISTS', REFERENCES, version.digest) == 0 then
    redis.call('DEL', 'ts:probe:' .. version.digest, 'ts:spent:' .. version.digest)
  end
end
if #kept > 0 then
  redis.call('HSET', registry_key(tenant), id, cjson.encode(kept))
else
  redis.call('HDEL', registry_key(tenant), id)
end
return {'ok'}
