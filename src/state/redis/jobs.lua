-- One call of one replica about jobs of one account: what it tells of them and asks, in order. One atomic step.
--
-- KEYS: jobs (hash: id -> state), answers (hash: id -> the upstream's last answer; '' -> bytes of all), live and ended (sorted sets: id ->
--   when it is forgotten), hooks (hash: webhooks that are owed, by token; deliveries, messages and their bodies, by message), lapses (sorted set:
--   field of hooks -> when it is forgotten), owed (sorted set: message that is not delivered -> until when its deliverer has it), account
--   and members (hashes of call.lua, read only).
-- ARGV[1]: the request; see `jobs.rs`. ARGV[2..]: answers. Times are the server's, in whole milliseconds; what is told and asked are durations.
local q = cjson.decode(ARGV[1])
local jobs, answers, live, ended, hooks, lapses, owed, account, members = unpack(KEYS)
local newer = newer_than_this(account)
if newer then return newer end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local bytes = tonumber(redis.call('HGET', answers, '') or '0')
local bodies, told, wrote = {}, 0, false

-- Lua writes 14 digits by itself.
local function text(number) return string.format('%.0f', number) end

local function state_of(id)
    local state = redis.call('HGET', jobs, id)
    return state and cjson.decode(state)
end

local function save(id, job)
    wrote = true
    job.v = job.v + 1
    redis.call('HSET', jobs, id, cjson.encode(job))
    redis.call('ZADD', job['end'] and ended or live, text(now + (job['end'] and q.ended or q.live)), id)
    if job['end'] then redis.call('ZREM', live, id) end
end

local function forget(id)
    local job = state_of(id)
    if job then bytes = bytes - job.size end
    redis.call('HDEL', jobs, id)
    redis.call('HDEL', answers, id)
    redis.call('ZREM', live, id)
    redis.call('ZREM', ended, id)
end

local function keep_answer(id, job, body)
    bytes = bytes - job.size
    job.size = 0
    -- Only ended jobs make room by being forgotten.
    if not body or (not job['end'] and bytes + #body > q.bytes) then
        redis.call('HDEL', answers, id)
        return
    end
    job.size = #body
    bytes = bytes + #body
    redis.call('HSET', answers, id, body)
end

-- Its owner has not been heard of for so long that another would have taken its jobs over, had it a chance to.
local since, settled
local function ask_who_lives()
    if not since then since, settled = census(account, members, q.lease * 1000) end
end
local function unsettled()
    ask_who_lives()
    return not settled or nil
end
local function is_gone(owner)
    ask_who_lives()
    local called = since(owner)
    return not called or called > q.gone * 1000
end

-- A webhook is owed at the end of the create whose URL has this token, and at that of this job, once it is known.
local function owe(token, hook, job)
    local kept = redis.call('HGET', hooks, 't' .. token)
    local entry = { job = kept and cjson.decode(kept).job or job }
    for name, value in pairs(hook) do entry[name] = entry[name] or value end
    wrote = true
    redis.call('HSET', hooks, 't' .. token, cjson.encode(entry))
    -- As long as a delivery, so that of too many the oldest go, and not the tokens of what lives.
    redis.call('ZADD', lapses, text(now + math.max(q.live, q.delivered)), 't' .. token)
end

local ops = {}

-- A state of a job. The first end that is told stands.
function ops.put(o)
    local job = state_of(o.id) or { v = 0, size = 0 }
    if o.take or (o.own and (not job.owner or is_gone(job.owner))) then
        job.owner, job.account, job.client, job.model = q.me, o.account, o.client, o.model
    end
    job.account, job.client, job.model = job.account or o.account, job.client or o.client, job.model or o.model
    if job.owner == q.me then
        job.hooks = o.hooks or job.hooks
        -- Told with the job, as the store may have lost them.
        for _, hook in ipairs(o.hooks or {}) do
            if hook.token then owe(hook.token, hook, o.id) end
        end
    end
    local r = { owner = job.owner }
    if job['end'] then
        r['end'] = job['end']
    elseif o.code or o['end'] or o.unread or not job.status then
        job.status, job['end'], job.code, job.type = o.status, o['end'], o.code, o.type
        job.at, job.next = now - (o.age or 0), o.next and now + o.next
        if o.body then
            keep_answer(o.id, job, ARGV[o.body])
        elseif not o.same then
            keep_answer(o.id, job)
        elseif job.size == 0 then
            r.lost = true
        end
    end
    save(o.id, job)
    r.v = job.v
    return r
end

-- What is known of a job, unless it is what the caller knows.
function ops.get(o)
    local job = state_of(o.id)
    if not job or not (job.owner or job['end']) then return {} end
    local gone = not job['end'] and job.owner ~= q.me and is_gone(job.owner) or nil
    if job.v == o.v or (o.idle and told > q.idle) then return { v = o.v, same = true, gone = gone, owner = job.owner } end
    local r = {
        v = job.v, gone = gone, owner = job.owner, account = job.account, client = job.client, model = job.model, status = job.status,
        ['end'] = job['end'], code = job.code, type = job.type, hooks = job.hooks,
    }
    if job.at then r.age = math.max(now - job.at, 0) end
    if job.next then r.next = math.max(job.next - now, 0) end
    if job.size > 0 then
        bodies[#bodies + 1] = redis.call('HGET', answers, o.id)
        told = told + job.size
        r.body = #bodies
    end
    return r
end

function ops.owe(o)
    owe(o.token, o.hook, o.hook.job)
    return {}
end

-- What is owed for this token. The first job that it was called about is its create's. After a loss it may still be told.
function ops.token(o)
    local kept = redis.call('HGET', hooks, 't' .. o.token)
    if not kept then return { unsure = unsettled() } end
    local hook = cjson.decode(kept)
    if o.job and not hook.job then
        wrote = true
        hook.job = o.job
        redis.call('HSET', hooks, 't' .. o.token, cjson.encode(hook))
    end
    return { hooks = { hook } }
end

-- Who delivers is one row of one replica: it may have two about one job.
local function delivery(message, by, till)
    wrote = true
    redis.call('HSET', hooks, 'd' .. message, by .. ' ' .. text(till))
    redis.call('ZADD', lapses, text(math.max(till, now) + q.delivered), 'd' .. message)
    if by == '-' then
        redis.call('ZREM', owed, message)
        redis.call('HDEL', hooks, 'm' .. message, 'b' .. message)
        redis.call('ZREM', lapses, 'm' .. message)
    else
        redis.call('ZADD', owed, 'XX', text(till), message)
    end
end

-- A message is due: should its replica not come back, another delivers it. Of many that nobody takes, only that they are due is kept.
function ops.due(o)
    if string.sub(redis.call('HGET', hooks, 'd' .. o.message) or '', 1, 2) == '- ' then return {} end
    wrote = true
    redis.call('HSET', hooks, 'm' .. o.message, cjson.encode({ hook = o.hook, job = o.job, ['end'] = o['end'], by = q.me }))
    if o.body and redis.call('ZCARD', owed) < q.bodies then
        redis.call('HSET', hooks, 'b' .. o.message, ARGV[o.body])
    end
    redis.call('ZADD', owed, text(now + o.lease), o.message)
    redis.call('ZADD', lapses, text(now + q.delivered), 'm' .. o.message)
    return {}
end

-- A message whose deliverer has let it lapse, for whoever asks first; it has this long to write it down and claim it.
function ops.orphan(o)
    for _ = 1, 100 do
        local first = redis.call('ZRANGE', owed, 0, 0, 'WITHSCORES')
        if not first[1] or tonumber(first[2]) > now then return {} end
        local message = first[1]
        local kept = redis.call('HGET', hooks, 'm' .. message)
        wrote = true
        local entry = kept and cjson.decode(kept)
        if entry then redis.call('ZADD', owed, text(now + o.lease), message) end
        local body = entry and redis.call('HGET', hooks, 'b' .. message)
        -- Only its own replica has all of a message whose body is not here: while that one is there, it comes when its receiver lets it.
        local waits = entry and not body and entry.by and not is_gone(entry.by)
        if entry and not waits then
            local r = { message = message, job = entry.job, ['end'] = entry['end'], hooks = { entry.hook } }
            if body then
                bodies[#bodies + 1] = body
                r.body = #bodies
            end
            return r
        end
        if not entry then redis.call('ZREM', owed, message) end
    end
    return {}
end

-- May this replica deliver the message? Nobody else does while it may.
function ops.claim(o)
    local by, till = string.match(redis.call('HGET', hooks, 'd' .. o.message) or '', '^(%S+) (%d+)$')
    if by == '-' then return { done = true } end
    local mine = q.me .. '/' .. text(o.row)
    if by and by ~= mine and tonumber(till) > now then return { wait = tonumber(till) - now } end
    delivery(o.message, mine, now + o.lease)
    return {}
end

-- It was delivered or given up, or rests with this row; for no time: whoever comes first has it, though it was delivered.
function ops.tried(o)
    local was = redis.call('HGET', hooks, 'd' .. o.message) or ''
    if o.done then
        delivery(o.message, '-', now)
    elseif o.lease == 0 or string.sub(was, 1, 2) ~= '- ' then
        delivery(o.message, q.me .. '/' .. text(o.row), now + o.lease)
    end
    return {}
end

local results = {}
for i, o in ipairs(q.asks) do results[i] = ops[o.op](o) end

-- At most so many are forgotten in one call.
local function prune(set, most, full, drop)
    for _ = 1, 100 do
        local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
        if not first[1] or (tonumber(first[2]) > now and redis.call('ZCARD', set) <= most and not full()) then return end
        wrote = true
        drop(first[1])
    end
end
local function no() return false end
prune(live, q.most, no, forget)
prune(ended, q.most, function() return bytes > q.bytes end, forget)
prune(lapses, q.most, no, function(field)
    redis.call('HDEL', hooks, field)
    if string.sub(field, 1, 1) == 'm' then redis.call('HDEL', hooks, 'b' .. string.sub(field, 2)) end
    redis.call('ZREM', lapses, field)
end)
if wrote then
    redis.call('HSET', answers, '', text(math.max(bytes, 0)))
    -- Should no replica ever call again.
    for i = 1, 7 do redis.call('PEXPIRE', KEYS[i], text(q.live + q.delivered)) end
end
return { cjson.encode(results), unpack(bodies) }
