# How a job that was started is doing. { operation }
# state: unknown (never started, or removed), running, completed, failed (`hresult` says why), lost (the host knows nothing
# of it any more, and it may not have ended: start it again). A disk that was converted gets its name here.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    if ($argument.operation -notmatch '^[0-9A-Za-z-]{1,64}$') { throw 'StorageAgent.InvalidOperation' }
    $root = Join-Path -Path $env:ProgramData -ChildPath 'storage-agent'
    $folder = Join-Path -Path $root -ChildPath $argument.operation
    $file = Join-Path -Path $folder -ChildPath 'record.json'
    $draft = Join-Path -Path $folder -ChildPath 'record.new'
    $record = $null
    if (Test-Path -LiteralPath $file) { $record = Get-Content -LiteralPath $file -Raw | ConvertFrom-Json }
    $job = $null
    if ($null -ne $record -and $null -ne $record.job) {
        $job = Get-CimInstance -Namespace root/virtualization/v2 -ClassName Msvm_StorageJob |
            Where-Object { $_.InstanceID -eq $record.job }
    }
    $result = @{ state = 'unknown'; percent = 0; hresult = 0 }
    if ($null -ne $record) {
        $converted = $record.kind -eq 'convert' -and (Test-Path -LiteralPath $record.path)
        if ($record.ended -or $converted) { $result = @{ state = 'completed'; percent = 100; hresult = 0 } }
        elseif ($null -eq $job) { $result = @{ state = 'lost'; percent = 0; hresult = 0 } }
        elseif ($job.JobState -eq 7 -or $job.JobState -eq 32768) {
            if ($record.kind -eq 'convert') { Move-Item -LiteralPath $record.partial -Destination $record.path }
            $record.ended = $true
            $record | ConvertTo-Json -Compress | Set-Content -LiteralPath $draft -Encoding UTF8
            Move-Item -LiteralPath $draft -Destination $file -Force
            $result = @{ state = 'completed'; percent = 100; hresult = 0 }
        }
        elseif ($job.JobState -gt 7) {
            $result = @{ state = 'failed'; percent = $job.PercentComplete; hresult = $job.JobCompletionStatusCode }
        }
        else { $result = @{ state = 'running'; percent = $job.PercentComplete; hresult = 0 } }
    }
    @{ ok = $true; result = $result } | ConvertTo-Json -Compress -Depth 8
}
catch {
    @{
        ok = $false
        id = $_.FullyQualifiedErrorId
        hresult = $_.Exception.GetBaseException().HResult
        category = [string]$_.CategoryInfo.Category
        message = $_.Exception.Message
    } | ConvertTo-Json -Compress
}
