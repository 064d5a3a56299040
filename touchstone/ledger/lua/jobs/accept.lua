-- id, submission, kind, method, model, deadline ms, queue limit, dispatch grace ms, idempotency key or '', digest, its
-- lifetime ms, tenant, webhook or '', passes that the job may ask for, jobs of the tenant that may wait or '', its passes a
-- day or '', bytes of what the job works on, the most bytes that it may store, bytes that the tenant may hold or '',
-- digest and bytes of the blob of its parameters or '' where the submission has them. Without an id nothing is written: it is
-- answered whether the job would be accepted. A new job comes as its version and time, with what is left of the queue, of
-- the tenant's passes and of its bytes, -1 where there is no limit.
local id, submission, kind, method, model = unpack(ARGV, 1, 5)
local deadline, limit, grace = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local key, digest, life, tenant, webhook = unpack(ARGV, 9, 13)
local passes, max_waiting, max_passes = ARGV[14], tonumber(ARGV[15]), tonumber(ARGV[16])
local input_bytes, output_bytes, max_storage = tonumber(ARGV[17]), tonumber(ARGV[18]), tonumber(ARGV[19])
local parameters = ARGV[20] or ''

if redis.call('EXISTS', job_key(id)) == 1 then
  return {'created', fields(id)}
end
if key ~= '' then
  local earlier = redis.call('HMGET', 'ts:key:' .. key, 'digest', 'job')
  if earlier[1] then
    if earlier[1] ~= digest then return {'mismatch'} end
    return {'known', fields(earlier[2])}
  end
end
local at = now()
local places = limit - redis.call('ZCARD', 'ts:status:queued')
if places <= 0 then
  return {'full', oldest_wait(at, 'ts:status:queued')}
end
local _, tenant_index = status_indexes('queued', tenant)
if max_waiting then
  local tenant_places = max_waiting - redis.call('ZCARD', tenant_index)
  if tenant_places <= 0 then return {'crowded', oldest_wait(at, tenant_index)} end
  places = math.min(places, tenant_places)
end
local day = math.floor(at / DAY)
local passes_left = max_passes and max_passes - passes - tonumber(redis.call('HGET', spent_key(day), tenant) or 0)
if passes_left and passes_left < 0 then
  return {'spent', (day + 1) * DAY - at}
end
local request = cjson.decode(submission)
local image = request.image ~= cjson.null and request.image.digest
local source = image or request.file
local stored = tonumber(redis.call('HGET', STORED, tenant) or 0)
local examples = type(request.examples) == 'table' and request.examples or nil
local added_bytes = 0
local function add_bytes(digest, size)
  if holders_of(tenant, digest) == 0 then added_bytes = added_bytes + size end
end
add_bytes(source, input_bytes)
if examples then add_bytes(examples.digest, examples.size) end
if parameters ~= '' then add_bytes(parse_reference(parameters)) end
local bytes_left = max_storage and max_storage - stored - added_bytes - output_bytes
if bytes_left and bytes_left < 0 then
  return {'stored', stored}
end
if id == '' then return {'fits'} end

local seq = redis.call('INCR', 'ts:seq')
set(id, 'id', id, 'seq', seq, 'version', 0, 'status', 'queued', 'submission', submission, 'created_at', at,
  'kind', kind, 'method', method, 'model', model, 'deadline', deadline, 'tenant', tenant, 'webhook', webhook,
  'attempts', 0, 'claims', 0, 'cancel', 0, 'done', 0, 'total', 0)
for _, index in ipairs(indexes('queued', kind, method, model, tenant)) do
  redis.call('ZADD', index, seq, id)
end
redis.call('ZADD', REDISPATCH, at + grace, id)
enqueue(id, queue_of(model))
if max_passes then spend_passes(id, tenant, passes, day) end
if key ~= '' then
  redis.call('HSET', 'ts:key:' .. key, 'digest', digest, 'job', id)
  redis.call('PEXPIRE', 'ts:key:' .. key, life)
  set(id, 'key', key)
end
set(id, image and 'image' or 'file', source)
add_holder(tenant, source, input_bytes)
if examples then
  set(id, 'examples', examples.digest)
  add_holder(tenant, examples.digest, examples.size)
end
if parameters ~= '' then set(id, 'parameters_blob', parameters) end
hold_value(tenant, parameters)
reserve(id, tenant, output_bytes)
return {'new', record_status(id), at, places - 1, passes_left or -1, bytes_left or -1}
